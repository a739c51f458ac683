"""A site's data: cases, images, annotations, augmented views, phantoms and the feature cache."""
