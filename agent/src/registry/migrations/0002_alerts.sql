-- Conditions that hold, or were told within the cool-down. Empty names: the node's, or the service's.
CREATE TABLE conditions (
  service   TEXT NOT NULL,
  component TEXT NOT NULL,
  condition TEXT NOT NULL,
  holds     INTEGER NOT NULL,
  last      TEXT NOT NULL,
  told      TEXT,
  told_at   INTEGER,
  PRIMARY KEY (service, component, condition)
) STRICT, WITHOUT ROWID;

-- Alerts on their way out, those of one condition in their order.
CREATE TABLE outbox (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  subject  TEXT NOT NULL,
  body     TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  next_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_subject ON outbox (subject, id);
