"""What tests share: small models, small data, and processes started as people start them."""
