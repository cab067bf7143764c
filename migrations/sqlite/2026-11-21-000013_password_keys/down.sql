DROP TABLE password_nonces;
DROP TABLE password_keys;
