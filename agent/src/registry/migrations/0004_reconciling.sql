-- Changes within the window, and whether they are too many; null: none.
ALTER TABLE observed ADD COLUMN flapping TEXT;

-- Services whose automatic deployments did not end well, or did again only lately.
CREATE TABLE pauses (
  service  TEXT PRIMARY KEY,
  wanted   TEXT NOT NULL,
  failures INTEGER NOT NULL,
  pause_ms INTEGER NOT NULL,
  at       INTEGER NOT NULL,
  cause    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Components that the agent has repaired by itself lately.
CREATE TABLE repairs (
  service   TEXT NOT NULL,
  component TEXT NOT NULL,
  wanted    TEXT NOT NULL,
  times     TEXT NOT NULL,
  contested INTEGER NOT NULL,
  pause_ms  INTEGER NOT NULL,
  at        INTEGER NOT NULL,
  cause     TEXT NOT NULL,
  PRIMARY KEY (service, component)
) STRICT, WITHOUT ROWID;
