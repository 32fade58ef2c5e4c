"""What is wrong with a data set: copies, labels, pictures, shortcuts, drift, as findings on a page."""
