"""What pretraining is worth: finetuning on few labels."""
