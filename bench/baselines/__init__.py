"""What FastSelfie is measured against, written out plainly: no network, kernel or optimiser of FastSelfie's."""
