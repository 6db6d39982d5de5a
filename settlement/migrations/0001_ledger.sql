-- The ledger: what the log says, one table a kind of fact. Every row names the record it comes from
-- (sequence, time_ns). Money is in millionths of the venue's currency, prices in ticks per GPU-hour,
-- quantities in lots of the class, hours counted from the Unix epoch, ..._ns UTC nanoseconds.
-- There are no foreign keys: the engine has already refused what does not refer to anything, and a
-- rebuild empties the tables one by one.

-- How far a reader has taken the log in; last_entry is the 48-byte leaf of that record, by which
-- a reader sees that it still follows the same log.
CREATE TABLE cux.reader_position (
    reader      text PRIMARY KEY,
    last        bigint NOT NULL CHECK (last >= 0),
    last_entry  bytea NOT NULL CHECK (length(last_entry) = CASE WHEN last = 0 THEN 0 ELSE 48 END)
);
INSERT INTO cux.reader_position (reader, last, last_entry) VALUES ('ledger', 0, '');

CREATE TABLE cux.accounts (
    account          bigint PRIMARY KEY,
    sequence         bigint NOT NULL,
    time_ns          bigint NOT NULL,
    trade_group      bigint NOT NULL,
    registry_digest  bytea NOT NULL
);

CREATE TABLE cux.sites (
    site           bigint PRIMARY KEY,
    sequence       bigint NOT NULL,
    time_ns        bigint NOT NULL,
    account        bigint NOT NULL,
    zone           text NOT NULL,
    class_code     text NOT NULL,
    capacity_lots  bigint NOT NULL,
    carbon         text NOT NULL,
    security       text NOT NULL,
    from_hour      bigint NOT NULL,
    until_hour     bigint NOT NULL
);

-- Accepted orders with the terms of their command. A bid has the required_... columns, an ask site and
-- carbon; the others are null.
CREATE TABLE cux.orders (
    order_id           bigint PRIMARY KEY,
    sequence           bigint NOT NULL,
    time_ns            bigint NOT NULL,
    account            bigint NOT NULL,
    client_order_id    text NOT NULL,
    valid_until_ns     bigint NOT NULL,
    side               text NOT NULL CHECK (side IN ('buy', 'sell')),
    class_code         text NOT NULL,
    delivery_hour      bigint NOT NULL,
    hours              bigint NOT NULL,
    lots               bigint NOT NULL,
    price_ticks        bigint NOT NULL,
    time_in_force      text NOT NULL,
    expire_ns          bigint NOT NULL,
    required_zone      text,
    required_latency   text,
    required_carbon    text,
    required_security  text,
    site               bigint,
    carbon             text,
    reserved_micros    bigint NOT NULL
);
CREATE INDEX orders_by_contract ON cux.orders (class_code, delivery_hour);
CREATE INDEX orders_by_account ON cux.orders (account);

-- Orders that ended with something unfilled.
CREATE TABLE cux.order_ends (
    order_id         bigint PRIMARY KEY,
    sequence         bigint NOT NULL,
    time_ns          bigint NOT NULL,
    account          bigint NOT NULL,
    leaves_lots      bigint NOT NULL,
    released_micros  bigint NOT NULL,
    reason           text NOT NULL
);

-- One row a trade; a block has one for each of its legs, under its order id in `block` (else 0).
CREATE TABLE cux.fills (
    trade_id                bigint PRIMARY KEY,
    sequence                bigint NOT NULL,
    time_ns                 bigint NOT NULL,
    class_code              text NOT NULL,
    delivery_hour           bigint NOT NULL,
    price_ticks             bigint NOT NULL,
    lots                    bigint NOT NULL,
    taker                   text NOT NULL CHECK (taker IN ('buy', 'sell')),
    bid_order_id            bigint NOT NULL,
    ask_order_id            bigint NOT NULL,
    buyer                   bigint NOT NULL,
    seller                  bigint NOT NULL,
    site                    bigint NOT NULL,
    block                   bigint NOT NULL,
    notional_micros         bigint NOT NULL,
    buyer_fee_micros        bigint NOT NULL,
    buyer_released_micros   bigint NOT NULL,
    bond_micros             bigint NOT NULL,
    seller_fee_micros       bigint NOT NULL,
    seller_released_micros  bigint NOT NULL
);
CREATE INDEX fills_by_contract ON cux.fills (class_code, delivery_hour);
CREATE INDEX fills_by_hour ON cux.fills (delivery_hour);
CREATE INDEX fills_by_buyer ON cux.fills (buyer);
CREATE INDEX fills_by_seller ON cux.fills (seller);

-- Every movement of money, debit and credit in one row, so that no half of one can exist. `ordinal`
-- counts the transfers of a record from 1. Purses: 1 cash, 2 reserved, 3 committed, 4 bond, 5 bank,
-- 6 fees; the last two are of the venue, account 0.
CREATE TABLE cux.transfers (
    sequence        bigint NOT NULL,
    ordinal         bigint NOT NULL,
    debit_account   bigint NOT NULL,
    debit_purse     smallint NOT NULL,
    credit_account  bigint NOT NULL,
    credit_purse    smallint NOT NULL,
    amount_micros   bigint NOT NULL CHECK (amount_micros > 0),
    PRIMARY KEY (sequence, ordinal),
    CHECK ((debit_account, debit_purse) <> (credit_account, credit_purse))
);

CREATE TABLE cux.readings_announced (
    batch       bigint PRIMARY KEY,
    sequence    bigint NOT NULL,
    time_ns     bigint NOT NULL,
    source      text NOT NULL,
    from_hour   bigint NOT NULL,
    until_hour  bigint NOT NULL,
    count       bigint NOT NULL,
    sha256      bytea NOT NULL
);

CREATE TABLE cux.settlement_runs (
    run             bigint PRIMARY KEY,
    sequence        bigint NOT NULL,
    time_ns         bigint NOT NULL,
    kind            text NOT NULL,
    position        bigint NOT NULL,
    readings_batch  bigint NOT NULL,
    postings        bigint NOT NULL,
    sha256          bytea NOT NULL
);

-- What each run posted for a fill: differences to the runs before it, so that they add up.
CREATE TABLE cux.settlements (
    run                  bigint NOT NULL,
    trade_id             bigint NOT NULL,
    sequence             bigint NOT NULL,
    time_ns              bigint NOT NULL,
    verdict              text NOT NULL,
    delivered_gpu_ms     bigint NOT NULL,
    buyer                bigint NOT NULL,
    seller               bigint NOT NULL,
    payment_micros       bigint NOT NULL,
    refund_micros        bigint NOT NULL,
    penalty_micros       bigint NOT NULL,
    bond_release_micros  bigint NOT NULL,
    PRIMARY KEY (run, trade_id)
);
CREATE INDEX settlements_by_trade ON cux.settlements (trade_id);

-- What every purse holds; the sum over all rows is zero, as each transfer stands here once on each side.
CREATE VIEW cux.balances AS
SELECT account, purse, sum(amount_micros)::bigint AS amount_micros
FROM (
    SELECT debit_account AS account, debit_purse AS purse, -amount_micros AS amount_micros FROM cux.transfers
    UNION ALL
    SELECT credit_account, credit_purse, amount_micros FROM cux.transfers
) AS sides
GROUP BY account, purse;

-- Roles belong to the server, not to the database: another database may have made this one already, and
-- on a server of someone else's we may not be allowed to. The triggers below hold without it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cux_writer') THEN
        CREATE ROLE cux_writer NOLOGIN;
    END IF;
    -- Who makes a role is its administrator, but may not act as it without this.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT cux_writer TO %I', current_user);
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN
        NULL;  -- another database made it at the same moment
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no role cux_writer: the ledger is written by its owner';
END
$$;

CREATE FUNCTION cux.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cux.% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Make a table of facts append-only: for its owner and for superusers by a trigger that also fires
-- for replication; the writer's role is not given more than SELECT and INSERT in the first place.
CREATE FUNCTION cux.make_append_only(fact regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION cux.refuse_change()', fact);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER append_only', fact);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'cux_writer') THEN
        EXECUTE format('GRANT SELECT, INSERT ON %s TO cux_writer', fact);
    END IF;
END
$$;

SELECT cux.make_append_only(fact) FROM unnest(ARRAY[
    'cux.accounts', 'cux.sites', 'cux.orders', 'cux.order_ends', 'cux.fills', 'cux.transfers',
    'cux.readings_announced', 'cux.settlement_runs', 'cux.settlements'
]::regclass[]) AS fact;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'cux_writer') THEN
        GRANT USAGE ON SCHEMA cux TO cux_writer;
        GRANT SELECT ON cux.balances TO cux_writer;
        GRANT SELECT, UPDATE ON cux.reader_position TO cux_writer;
    END IF;
END
$$;
