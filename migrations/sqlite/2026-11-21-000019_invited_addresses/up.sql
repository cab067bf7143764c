-- An invitation reserves nothing: whoever is invited holds the address once it is accepted or verified.
UPDATE users SET email_key = NULL WHERE status = 'INVITED';
