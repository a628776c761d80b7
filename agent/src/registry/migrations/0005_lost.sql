-- Containers that were lost with the engine's store and have yet to be brought back.
CREATE TABLE lost (
  service   TEXT NOT NULL,
  component TEXT NOT NULL,
  container TEXT NOT NULL,
  PRIMARY KEY (service, component)
) STRICT, WITHOUT ROWID;
