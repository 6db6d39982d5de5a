-- Order types, replaces, reductions, runs, resale, phases and calls. What is in the tables already was
-- entered before any of these: the defaults say so of it, and are not for rows to come.

ALTER TABLE cux.orders
    ADD COLUMN order_type       text NOT NULL DEFAULT 'limit',
    ADD COLUMN min_lots         bigint NOT NULL DEFAULT 0,
    ADD COLUMN display_lots     bigint NOT NULL DEFAULT 0,
    ADD COLUMN post_only        boolean NOT NULL DEFAULT false,
    ADD COLUMN self_trade       text NOT NULL DEFAULT 'cancel_taker',
    ADD COLUMN exclusive_group  text,
    -- The trade that an ask resells.
    ADD COLUMN position         bigint,
    ADD COLUMN min_hours        bigint NOT NULL DEFAULT 0,
    -- The standing offer that listed the order; its client_order_id is then the offer's name.
    ADD COLUMN offer_id         bigint;
ALTER TABLE cux.orders
    ALTER COLUMN order_type DROP DEFAULT,
    ALTER COLUMN min_lots DROP DEFAULT,
    ALTER COLUMN display_lots DROP DEFAULT,
    ALTER COLUMN post_only DROP DEFAULT,
    ALTER COLUMN self_trade DROP DEFAULT,
    ALTER COLUMN min_hours DROP DEFAULT;

-- In a call nobody takes. `position` is the trade whose lots the seller resold, or 0.
ALTER TABLE cux.fills
    ALTER COLUMN taker DROP NOT NULL,
    ADD COLUMN position bigint NOT NULL DEFAULT 0;
ALTER TABLE cux.fills ALTER COLUMN position DROP DEFAULT;
CREATE INDEX fills_by_position ON cux.fills (position) WHERE position <> 0;

-- An order's new total and price; the latest is in force. leaves_lots are lot-hours for a run;
-- reserved_micros went from cash to reserved, under 0 back.
CREATE TABLE cux.order_replacements (
    order_id         bigint NOT NULL,
    sequence         bigint NOT NULL,
    time_ns          bigint NOT NULL,
    account          bigint NOT NULL,
    lots             bigint NOT NULL,
    price_ticks      bigint NOT NULL,
    leaves_lots      bigint NOT NULL,
    reserved_micros  bigint NOT NULL,
    PRIMARY KEY (order_id, sequence)
);

-- Lots taken out of an order that stays open; `ordinal` is the event's place in its record, from 1. Of a
-- run lots and leaves_lots are lot-hours, and run_lots (else null) what is open by hour, from its first.
CREATE TABLE cux.order_reductions (
    order_id         bigint NOT NULL,
    sequence         bigint NOT NULL,
    ordinal          bigint NOT NULL,
    time_ns          bigint NOT NULL,
    account          bigint NOT NULL,
    lots             bigint NOT NULL,
    leaves_lots      bigint NOT NULL,
    released_micros  bigint NOT NULL,
    reason           text NOT NULL,
    run_lots         bigint[],
    PRIMARY KEY (sequence, ordinal)
);
CREATE INDEX order_reductions_by_order ON cux.order_reductions (order_id);

-- The phases that contracts entered; `ordinal` is the event's place in its record, from 1.
CREATE TABLE cux.phases (
    sequence       bigint NOT NULL,
    ordinal        bigint NOT NULL,
    time_ns        bigint NOT NULL,
    class_code     text NOT NULL,
    delivery_hour  bigint NOT NULL,
    phase          text NOT NULL,
    PRIMARY KEY (sequence, ordinal)
);
CREATE INDEX phases_by_contract ON cux.phases (class_code, delivery_hour);

-- The prices at which calls cleared, one row a supply cell that traded; its trades are the fills of the
-- same record.
CREATE TABLE cux.call_prices (
    sequence       bigint NOT NULL,
    time_ns        bigint NOT NULL,
    class_code     text NOT NULL,
    delivery_hour  bigint NOT NULL,
    zone           text NOT NULL,
    carbon         text NOT NULL,
    security       text NOT NULL,
    lowest_ticks   bigint NOT NULL,
    highest_ticks  bigint NOT NULL,
    price_ticks    bigint NOT NULL,
    PRIMARY KEY (sequence, zone, carbon, security)
);
CREATE INDEX call_prices_by_contract ON cux.call_prices (class_code, delivery_hour);

SELECT cux.make_append_only(fact) FROM unnest(ARRAY[
    'cux.order_replacements', 'cux.order_reductions', 'cux.phases', 'cux.call_prices'
]::regclass[]) AS fact;
