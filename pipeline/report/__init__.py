"""Tables and figures over the whole grid."""
