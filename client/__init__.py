"""A hospital's side: the Flower ClientApp and the site agent behind it."""
