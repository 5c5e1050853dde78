-- One transaction of pgbench: a table comes, is rewritten in every way, and goes; each step makes and drops files.
\set n random(1, 1000000000)
CREATE TABLE churn_:client_id (id serial PRIMARY KEY, what text, note text);
ALTER TABLE churn_:client_id ALTER note SET STORAGE EXTERNAL;
CREATE INDEX churn_what_:client_id ON churn_:client_id (what);
INSERT INTO churn_:client_id (what, note) SELECT :n || '.' || i, repeat('note ' || i, 800) FROM generate_series(1, 20) i;
TRUNCATE churn_:client_id;
INSERT INTO churn_:client_id (what) SELECT i FROM generate_series(1, 200) i;
VACUUM churn_:client_id;
VACUUM FULL churn_:client_id;
REINDEX TABLE churn_:client_id;
DROP TABLE churn_:client_id;
