"""FastSelfie: self-supervised pretraining by masked-patch classification (Trinh, Luong, Le 2019), made fast."""

__version__ = "0.1.0"
