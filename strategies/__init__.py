"""One file per federated algorithm; this file imports none of them."""
