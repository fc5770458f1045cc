"""Networks without what is inactive, and the states that train them."""
