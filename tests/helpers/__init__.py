"""What several test files share: tiny classifiers, malformed images, a live server."""
