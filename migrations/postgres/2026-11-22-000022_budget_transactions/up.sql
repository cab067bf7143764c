-- Which of its transactions a server has last changed a key's budget by: where the answer to one was lost, that tells whether it lasts.
ALTER TABLE budget_holds ADD COLUMN transaction_number bigint NOT NULL DEFAULT 0;
