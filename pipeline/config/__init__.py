"""What a run is: the params file, the cells of its grid."""
