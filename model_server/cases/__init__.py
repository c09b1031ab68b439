"""What training and evaluation share: cases, splits, canonical shapes, simulated annotations."""
