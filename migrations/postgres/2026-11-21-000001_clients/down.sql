DROP TABLE tasks;
DROP TABLE clients;
