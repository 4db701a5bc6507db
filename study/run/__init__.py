"""The runs of a study, trained."""
