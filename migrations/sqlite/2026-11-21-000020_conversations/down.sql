DROP TABLE messages;
DROP TRIGGER conversations_search_insert;
DROP TRIGGER conversations_search_update;
DROP TRIGGER conversations_search_delete;
DROP TABLE conversations_search;
DROP TABLE conversations;
