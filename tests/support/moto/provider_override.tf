# Where moto is told apart from AWS; laid over a copy of the configuration.

provider "aws" {
  access_key = "anybody"
  secret_key = "anything"

  # A bucket's own host name resolves nowhere.
  s3_use_path_style = true

  # Should moto be gone, so is the test: a few tries, not 25.
  max_retries = 2
}

# moto knows Amazon's images, and not Canonical's.
data "aws_ssm_parameter" "ubuntu" {
  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

# moto ignores the policy's conditions, and would take no settings after it.
resource "aws_s3_bucket_policy" "archive" {
  bucket = one(distinct(values(aws_s3_object.settings)[*].bucket))
}
