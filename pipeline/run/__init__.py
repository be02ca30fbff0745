"""The main job: stages that read and write files of one run folder, skipped when up to date."""
