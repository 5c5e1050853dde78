-- After pgbench: the rows in an order that does not depend on which client came first, and without the time of day.
CLUSTER pgbench_accounts USING pgbench_accounts_pkey;
CLUSTER pgbench_tellers USING pgbench_tellers_pkey;
CLUSTER pgbench_branches USING pgbench_branches_pkey;
CREATE TABLE history AS SELECT tid, bid, aid, delta FROM pgbench_history ORDER BY tid, bid, aid, delta;
DROP TABLE pgbench_history;
