-- The load that an encrypted and a plain cluster both get. It gives the same rows in the same order every time, so
-- that their dumps can be compared. Each :'canary_...' is a text that is searched for in the files afterwards.

SET client_min_messages = warning;

-- Rows, an index whose expression is nowhere else, and a column with three values: those go to pg_statistic.
CREATE TABLE :canary_table_name (
    id bigint PRIMARY KEY,
    secret text NOT NULL,
    segment text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    place point NOT NULL,
    tags int[] NOT NULL
);
COMMENT ON TABLE :canary_table_name IS :'canary_comment';
INSERT INTO :canary_table_name
SELECT i, :'canary_row' || '-' || i, :'canary_statistics' || '-' || i % 3, i * 1.37, point(i % 100, i / 100),
       ARRAY[i % 7, i % 11, i % 13]
FROM generate_series(1, 20000) i;
CREATE INDEX by_expression ON :canary_table_name (replace(secret, :'canary_row', :'canary_index'));
CREATE INDEX by_hash ON :canary_table_name USING hash (secret);
CREATE INDEX by_gin ON :canary_table_name USING gin (tags);
CREATE INDEX by_gist ON :canary_table_name USING gist (place);
CREATE INDEX by_spgist ON :canary_table_name USING spgist (place);
CREATE INDEX by_brin ON :canary_table_name USING brin (amount);
DELETE FROM :canary_table_name WHERE id % 5 = 0;
UPDATE :canary_table_name SET amount = amount + 1 WHERE id % 3 = 0;
VACUUM (FREEZE) :canary_table_name;

-- Values that are too large for a page, stored out of line and not compressed.
CREATE TABLE documents (id int PRIMARY KEY, body text);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
INSERT INTO documents
SELECT i, (SELECT string_agg(md5((i * 1000 + j)::text), '' ORDER BY j) FROM generate_series(1, 400) j)
          || :'canary_toast' || i
FROM generate_series(1, 200) i;
SELECT lo_from_bytea(424242, convert_to(repeat(:'canary_large_object', 1000), 'UTF8'));

CREATE FUNCTION answer() RETURNS text LANGUAGE sql AS 'SELECT ''canary''';
CREATE OR REPLACE FUNCTION answer() RETURNS text LANGUAGE sql AS :'canary_function';
CREATE SEQUENCE numbers START 1000 INCREMENT 7;
SELECT count(nextval('numbers')) FROM generate_series(1, 100);

CREATE TABLE events (day date NOT NULL, number int NOT NULL, note text) PARTITION BY RANGE (day);
CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO events SELECT date '2024-01-01' + i % 700, i, md5(i::text) FROM generate_series(1, 20000) i;
CREATE MATERIALIZED VIEW by_month AS
    SELECT date_trunc('month', day) AS month, count(*) FROM events GROUP BY 1 ORDER BY 1;

-- Every way in which a relation gets a new file. The old and the new relfilenodes are compared afterwards.
CREATE TABLE rewritten (how text PRIMARY KEY, before oid, after oid);
CREATE TABLE vacuumed AS SELECT i, md5(i::text) AS text FROM generate_series(1, 30000) i;
CREATE TABLE clustered AS SELECT (i * 7919) % 30011 AS i, md5(i::text) AS text FROM generate_series(1, 30000) i;
CREATE TABLE altered AS SELECT i, md5(i::text) AS text FROM generate_series(1, 30000) i;
CREATE TABLE truncated AS SELECT i, md5(i::text) AS text FROM generate_series(1, 30000) i;
CREATE INDEX clustered_i ON clustered (i);
CREATE INDEX reindexed ON vacuumed (text);
CREATE INDEX reindexed_concurrently ON altered (text);
INSERT INTO rewritten
SELECT how, pg_relation_filenode(how) FROM unnest(ARRAY['vacuumed', 'clustered', 'altered', 'truncated', 'reindexed',
    'reindexed_concurrently']) how;
DELETE FROM vacuumed WHERE i % 2 = 0;
VACUUM FULL vacuumed;
CLUSTER clustered USING clustered_i;
ALTER TABLE altered ALTER i TYPE bigint;
TRUNCATE truncated;
INSERT INTO truncated SELECT i, 'again' FROM generate_series(1, 1000) i;
REINDEX INDEX reindexed;
REINDEX INDEX CONCURRENTLY reindexed_concurrently;
UPDATE rewritten SET after = pg_relation_filenode(how);
CREATE TABLE dropped AS SELECT generate_series(1, 30000) i;
DROP TABLE dropped;

-- Unlogged: emptied by a crash, and only by a crash.
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, note text);
INSERT INTO unlogged SELECT i, :'canary_unlogged' || i FROM generate_series(1, 5000) i;

-- Elsewhere.
CREATE TABLE elsewhere TABLESPACE elsewhere AS
    SELECT i, :'canary_tablespace' || i AS note FROM generate_series(1, 10000) i;
CREATE INDEX elsewhere_note ON elsewhere (note) TABLESPACE elsewhere;
CREATE TABLE moved AS SELECT i, md5(i::text) AS text FROM generate_series(1, 10000) i;
ALTER TABLE moved SET TABLESPACE elsewhere;
CREATE TABLE moved_back TABLESPACE elsewhere AS SELECT i, md5(i::text) AS text FROM generate_series(1, 10000) i;
ALTER TABLE moved_back SET TABLESPACE pg_default;

-- A transaction that is still prepared when the server crashes.
CREATE TABLE payments (amount int);
BEGIN;
INSERT INTO payments VALUES (100);
PREPARE TRANSACTION :'canary_two_phase';

ANALYZE;
