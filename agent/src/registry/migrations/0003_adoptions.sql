-- In what containers that were taken over depart from those that would be made from their specs. Of
-- use only while the component's row names the same container.
CREATE TABLE adoptions (
  service    TEXT NOT NULL,
  component  TEXT NOT NULL,
  container  TEXT NOT NULL,
  departures TEXT NOT NULL,
  PRIMARY KEY (service, component),
  FOREIGN KEY (service, component) REFERENCES deployed (service, component) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Containers that were let go of: their labels, if they have any, say nothing any more.
CREATE TABLE forgotten (
  container TEXT PRIMARY KEY,
  at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
