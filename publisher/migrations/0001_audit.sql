-- The audit (docs/operations.md, "Audit in Postgres"). An entry's id is <market_id>-<entry_ms>-<entry_n>.
CREATE TABLE audit (
    market_id  bigint NOT NULL,
    -- Unix ms and number: the entry's id in its market's stream in Redis.
    entry_ms   bigint NOT NULL,
    entry_n    bigint NOT NULL,
    epoch      bigint NOT NULL,
    seq        bigint NOT NULL,
    -- Unix ms at which the override was accepted.
    ts         bigint NOT NULL,
    actor      text   NOT NULL,
    reason     text   NOT NULL,
    -- JSON as it was written: 2.10 stays 2.10, which jsonb would keep and a reader of numbers would not. No type that
    -- checks it, so that nothing which Redis has is ever refused here.
    before     text   NOT NULL,
    after      text   NOT NULL,
    request_id text   NOT NULL,
    PRIMARY KEY (market_id, entry_ms, entry_n)
);

-- Newest first: of all markets, and of one actor. An actor's name may be longer than an index takes.
CREATE INDEX audit_by_time ON audit (entry_ms, market_id, entry_n);
CREATE INDEX audit_by_actor ON audit (left(actor, 64), entry_ms, market_id, entry_n);
