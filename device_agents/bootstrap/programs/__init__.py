"""Programs that run on a board as they are, before any agent is there: constant text."""
