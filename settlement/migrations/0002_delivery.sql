-- Delivery: what meters said (evidence), what was not believed, and what each run made of it. Times are
-- UTC nanoseconds, hours counted from the Unix epoch, GPU time in GPU-milliseconds, energy in millijoules.

-- Evidence taken in together, under one number and one digest; the log's readings_received names both.
CREATE TABLE cux.readings_batches (
    batch       bigint PRIMARY KEY CHECK (batch > 0),
    source      text NOT NULL,
    arrived_ns  bigint NOT NULL,
    from_hour   bigint NOT NULL,
    until_hour  bigint NOT NULL,
    count       bigint NOT NULL,
    sha256      bytea NOT NULL CHECK (length(sha256) = 32)
);

-- The files of a batch. The same bytes from the same site are evidence once, under whatever name.
-- Grid carbon is of no site: 0.
CREATE TABLE cux.reading_files (
    file_id  bigint PRIMARY KEY,
    batch    bigint NOT NULL REFERENCES cux.readings_batches,
    site     bigint NOT NULL,
    format   text NOT NULL CHECK (format IN ('slurm', 'opencost', 'dcgm', 'carbon')),
    name     text NOT NULL,
    sha256   bytea NOT NULL CHECK (length(sha256) = 32),
    UNIQUE (site, format, sha256)
);
CREATE INDEX reading_files_by_batch ON cux.reading_files (batch);

-- A row of a meter: GPU time between two moments, or an energy counter at one. trade_id is null for a
-- GPU that serves no fill: such a sample ends an interval.
CREATE TABLE cux.readings (
    file_id    bigint NOT NULL REFERENCES cux.reading_files,
    line       bigint NOT NULL,
    job        text NOT NULL,
    trade_id   bigint,
    host       text NOT NULL,
    start_ns   bigint NOT NULL,
    end_ns     bigint NOT NULL CHECK (end_ns >= start_ns),
    gpu_ms     bigint CHECK (gpu_ms >= 0),
    energy_mj  bigint CHECK (energy_mj >= 0),
    PRIMARY KEY (file_id, line),
    CHECK ((gpu_ms IS NULL) <> (energy_mj IS NULL))
);
CREATE INDEX readings_by_trade ON cux.readings (trade_id) WHERE trade_id IS NOT NULL;

-- Grams of the grid, as delivered with a batch; the latest batch that a run may use counts.
CREATE TABLE cux.carbon_intensity (
    zone           text NOT NULL,
    hour           bigint NOT NULL,
    batch          bigint NOT NULL REFERENCES cux.readings_batches,
    line           bigint NOT NULL,
    mgco2_per_kwh  bigint NOT NULL CHECK (mgco2_per_kwh >= 0),
    PRIMARY KEY (zone, hour, batch)
);

-- What was not believed, by file and line (0: the whole file), and why.
CREATE TABLE cux.quarantine (
    name        text NOT NULL,
    sha256      bytea NOT NULL,
    line        bigint NOT NULL,
    why         text NOT NULL,
    arrived_ns  bigint NOT NULL,
    PRIMARY KEY (name, sha256, line)
);

-- What a run is a function of, written down before it starts: a run that was cut off goes on with these.
CREATE TABLE cux.settlement_plans (
    run             bigint PRIMARY KEY CHECK (run > 0),
    kind            text NOT NULL CHECK (kind IN ('initial', 'final', 'correction')),
    position        bigint NOT NULL,
    readings_batch  bigint NOT NULL,
    before_hour     bigint NOT NULL
);

-- What a run found of a fill, where it differs from what the run before it found. The amounts are what
-- the fill comes to in all; null while it is pending. delivered_gpu_ms is null when nothing was read,
-- energy_mj when no meter measured it.
CREATE TABLE cux.reconciliations (
    run                  bigint NOT NULL REFERENCES cux.settlement_plans,
    trade_id             bigint NOT NULL,
    verdict              text NOT NULL CHECK (verdict IN ('delivered', 'short', 'over', 'missing')),
    contracted_gpu_ms    bigint NOT NULL CHECK (contracted_gpu_ms > 0),
    delivered_gpu_ms     bigint,
    energy_mj            bigint,
    co2e_mg              bigint,
    intensity_source     text NOT NULL CHECK (intensity_source IN ('hourly', 'catalogue')),
    pue_known            boolean NOT NULL,
    replacement_basis    text CHECK (replacement_basis IN ('trade', 'average', 'asks')),
    payment_micros       bigint,
    refund_micros        bigint,
    penalty_micros       bigint,
    bond_release_micros  bigint,
    PRIMARY KEY (run, trade_id)
);
CREATE INDEX reconciliations_by_trade ON cux.reconciliations (trade_id, run);

SELECT cux.make_append_only(fact) FROM unnest(ARRAY[
    'cux.readings_batches', 'cux.reading_files', 'cux.readings', 'cux.carbon_intensity', 'cux.quarantine',
    'cux.settlement_plans', 'cux.reconciliations'
]::regclass[]) AS fact;
