"""Moving expert weights from one placement to another while the model serves: scheduled, staged, voted on, in place."""
