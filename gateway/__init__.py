"""The doors: WebSocket, client, command line, simulation."""
