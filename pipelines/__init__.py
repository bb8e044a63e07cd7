"""From bytes on disk to views of images on the device. Knows views, not tasks."""
