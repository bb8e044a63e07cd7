"""What FastSelfie is measured against, written out plainly: no part of FastSelfie is in it."""
