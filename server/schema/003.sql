-- Version 3: nodes are listed in the order in which they came.
ALTER TABLE node ADD COLUMN num INTEGER NOT NULL DEFAULT 0;
UPDATE node SET num = rowid;
CREATE UNIQUE INDEX node_num ON node (num);
