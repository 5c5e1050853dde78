-- One connection of pgbench: something is read and written, temporary files and tables are used, and it goes.
CREATE TEMPORARY TABLE visit (id int PRIMARY KEY, what text);
INSERT INTO visit SELECT i, 'visit ' || i FROM generate_series(1, 50) i;
SET work_mem = '64kB';
SELECT count(*) FROM (SELECT i FROM generate_series(1, 5000) i ORDER BY random()) sorted;
UPDATE visits SET number = number + 1 WHERE id = 1 + :client_id;
SELECT count(*) FROM pg_class;
