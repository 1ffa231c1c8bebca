-- Run once, by the superuser, when docker-compose.yml makes postgres-prod.
\set password `cat /run/secrets/prod_password`
CREATE ROLE app LOGIN PASSWORD :'password';

CREATE TABLE whoami (name text NOT NULL);
INSERT INTO whoami VALUES ('prod');
GRANT SELECT ON whoami TO app;

-- From here on the superuser logs in from inside the container alone.
ALTER ROLE postgres PASSWORD NULL;
