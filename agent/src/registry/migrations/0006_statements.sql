-- Statements of signed requests that were received: each counts once.
CREATE TABLE statements (
  id      TEXT PRIMARY KEY,
  expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX statements_expires ON statements (expires);

-- Which token and which key stood behind a call.
ALTER TABLE audit ADD COLUMN token TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN signer TEXT NOT NULL DEFAULT '';
