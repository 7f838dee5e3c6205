"""What a picture larger than those of the training needs: rotary base, proportional scale, colour fix."""
