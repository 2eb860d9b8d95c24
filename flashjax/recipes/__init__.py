"""What several launchers share between their presets and the trainer."""
