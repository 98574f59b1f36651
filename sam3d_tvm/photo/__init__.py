"""Pictures in: photos, masks and point maps, and how they are brought to the models."""
