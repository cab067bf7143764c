ALTER TABLE budget_holds DROP COLUMN transaction_number;
