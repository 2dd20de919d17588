"""From vectors to files: `prediction_writer` while predicting, `finalize` afterwards."""
