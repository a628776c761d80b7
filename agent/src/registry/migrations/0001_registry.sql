-- Times are microseconds since 1970 in UTC. Commit ids and digests are text, so that the file can
-- be read with any SQLite shell.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Accepted revisions in the order of their acceptance: parents before children.
CREATE TABLE revisions (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  commit_id   TEXT NOT NULL UNIQUE,
  parents     TEXT NOT NULL,
  subject     TEXT NOT NULL,
  signer      TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  authored_at INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  source      TEXT NOT NULL,
  received_by TEXT NOT NULL
) STRICT;

CREATE TABLE head (
  only      INTEGER PRIMARY KEY CHECK (only = 1),
  commit_id TEXT NOT NULL REFERENCES revisions (commit_id)
) STRICT;

-- Which revision changed which component's spec; no digest: removed it.
CREATE TABLE spec_changes (
  service     TEXT NOT NULL,
  component   TEXT NOT NULL,
  seq         INTEGER NOT NULL REFERENCES revisions (seq),
  spec_digest TEXT,
  PRIMARY KEY (service, component, seq)
) STRICT, WITHOUT ROWID;

-- Bodies of specs, each stored once; the key is the SHA-256 of the body as stored.
CREATE TABLE specs (
  body_digest BLOB PRIMARY KEY,
  body        TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Every component that the agent ever made a container for; outlives its removal.
CREATE TABLE components (
  service    TEXT NOT NULL,
  component  TEXT NOT NULL,
  generation INTEGER NOT NULL,
  purged     INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (service, component)
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  service      TEXT NOT NULL,
  component    TEXT NOT NULL,
  spec_body    BLOB NOT NULL REFERENCES specs (body_digest),
  spec_digest  TEXT NOT NULL,
  image_id     TEXT NOT NULL,
  image_digest TEXT,
  revision     TEXT NOT NULL,
  deployment   TEXT NOT NULL,
  at           INTEGER NOT NULL,
  base         INTEGER NOT NULL
) STRICT;
CREATE INDEX history_component ON history (service, component, id);
CREATE INDEX history_spec ON history (spec_body);

CREATE TABLE deployed (
  service        TEXT NOT NULL,
  component      TEXT NOT NULL,
  spec_body      BLOB NOT NULL REFERENCES specs (body_digest),
  spec_digest    TEXT NOT NULL,
  image_id       TEXT NOT NULL,
  image_digest   TEXT,
  revision       TEXT NOT NULL,
  container      TEXT NOT NULL,
  container_name TEXT NOT NULL,
  generation     INTEGER NOT NULL,
  baseline       TEXT NOT NULL,
  desired        TEXT NOT NULL,
  stopped_by     TEXT,
  stopped_at     INTEGER,
  hold           TEXT,
  deployment     TEXT NOT NULL,
  history        INTEGER NOT NULL REFERENCES history (id),
  deployed_at    INTEGER NOT NULL,
  adopted        INTEGER NOT NULL,
  settings       TEXT NOT NULL,
  PRIMARY KEY (service, component)
) STRICT, WITHOUT ROWID;
CREATE INDEX deployed_spec ON deployed (spec_body);
CREATE INDEX deployed_history ON deployed (history);

CREATE TABLE observed (
  service         TEXT NOT NULL,
  component       TEXT NOT NULL,
  state           TEXT NOT NULL,
  health          TEXT,
  exit_code       INTEGER,
  oom             INTEGER NOT NULL,
  started_at      INTEGER,
  finished_at     INTEGER,
  restarts        INTEGER NOT NULL,
  next_restart_at INTEGER,
  backoff_attempt INTEGER NOT NULL,
  drift           TEXT NOT NULL,
  observed_at     INTEGER NOT NULL,
  PRIMARY KEY (service, component),
  FOREIGN KEY (service, component) REFERENCES deployed (service, component) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE quarantined (
  service     TEXT NOT NULL,
  component   TEXT NOT NULL,
  spec_digest TEXT NOT NULL,
  image_id    TEXT NOT NULL,
  deployment  TEXT NOT NULL,
  at          INTEGER NOT NULL,
  reason      TEXT NOT NULL,
  PRIMARY KEY (service, component, spec_digest, image_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE deployments (
  seq            INTEGER PRIMARY KEY AUTOINCREMENT,
  id             TEXT NOT NULL UNIQUE,
  service        TEXT NOT NULL,
  component      TEXT,
  request_id     TEXT NOT NULL,
  request_digest TEXT NOT NULL,
  actor          TEXT NOT NULL,
  trigger_word   TEXT NOT NULL,
  revision       TEXT,
  signer         TEXT,
  plan           TEXT NOT NULL,
  plan_id        TEXT NOT NULL,
  state          TEXT NOT NULL,
  outcome        TEXT,
  error          TEXT,
  created_at     INTEGER NOT NULL,
  line_at        INTEGER,
  finished_at    INTEGER
) STRICT;
CREATE INDEX deployments_request ON deployments (request_id);
CREATE INDEX deployments_service ON deployments (service, seq);
CREATE INDEX deployments_unfinished ON deployments (seq) WHERE finished_at IS NULL;

CREATE TABLE component_records (
  deployment    TEXT NOT NULL REFERENCES deployments (id) ON DELETE CASCADE,
  component     TEXT NOT NULL,
  position      INTEGER NOT NULL,
  action        TEXT NOT NULL,
  outcome       TEXT NOT NULL,
  from_revision TEXT,
  to_revision   TEXT,
  image_digest  TEXT,
  image_id      TEXT,
  duration_ms   INTEGER NOT NULL,
  downtime_ms   INTEGER NOT NULL,
  error         TEXT,
  changes       TEXT NOT NULL,
  log_tail      TEXT NOT NULL,
  PRIMARY KEY (deployment, component)
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
  deployment TEXT NOT NULL REFERENCES deployments (id) ON DELETE CASCADE,
  seq        INTEGER NOT NULL,
  component  TEXT,
  step       TEXT NOT NULL,
  phase      TEXT NOT NULL,
  data       TEXT NOT NULL,
  at         INTEGER NOT NULL,
  PRIMARY KEY (deployment, seq)
) STRICT, WITHOUT ROWID;

-- What an already seen request led to. `answer` is empty until the call has ended.
CREATE TABLE requests (
  request_id TEXT NOT NULL,
  scope      TEXT NOT NULL,
  digest     TEXT NOT NULL,
  answer     TEXT,
  at         INTEGER NOT NULL,
  PRIMARY KEY (request_id, scope)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_at ON requests (at);

-- AUTOINCREMENT: a sequence number is never given twice, even after the newest rows were pruned.
CREATE TABLE events (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,
  at        INTEGER NOT NULL,
  service   TEXT,
  component TEXT,
  kind      TEXT NOT NULL,
  reason    TEXT NOT NULL,
  message   TEXT NOT NULL,
  revision  TEXT,
  data      TEXT NOT NULL
) STRICT;
CREATE INDEX events_at ON events (at);
CREATE INDEX events_target ON events (service, component, seq);

CREATE TABLE audit (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  at         INTEGER NOT NULL,
  who        TEXT NOT NULL,
  method     TEXT NOT NULL,
  target     TEXT NOT NULL,
  from_addr  TEXT NOT NULL,
  request_id TEXT NOT NULL,
  result     TEXT NOT NULL
) STRICT;
CREATE INDEX audit_at ON audit (at);
