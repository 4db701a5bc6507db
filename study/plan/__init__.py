"""From TOML and flags to the runs of a study, before anything is trained."""
