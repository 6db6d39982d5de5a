"""The main job: one trading day, from orders over WebSocket to payment and proof, in processes of its own."""
