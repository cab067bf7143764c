DROP INDEX claude_accounts_by_turn;
DROP TABLE budget_holds;
DROP TABLE budgets;
DROP TABLE usage_rollups;
DROP TABLE usage_heads;
DROP TABLE usage_records;
