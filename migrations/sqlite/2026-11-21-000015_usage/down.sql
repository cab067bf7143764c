ALTER TABLE claude_accounts DROP COLUMN is_near_limit;
DROP TABLE budget_holds;
DROP TABLE budgets;
DROP TABLE usage_rollups;
DROP TABLE usage_heads;
DROP TABLE usage_records;
