"""The plugins that come with drivetrain, found through the same entry points as a stranger's."""
