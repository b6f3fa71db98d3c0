# As many streams as there may be, all names as long as they may be.

mock_provider "aws" {
  source = "./tests/mocks"

  mock_resource "aws_s3_bucket" {
    defaults = {
      id     = "a-name-of-20-letters-20250101123456789012345678"
      bucket = "a-name-of-20-letters-20250101123456789012345678"
      arn    = "arn:aws:s3:::a-name-of-20-letters-20250101123456789012345678"
    }
  }

  mock_resource "aws_sqs_queue" {
    defaults = {
      url = "https://sqs.ap-southeast-1.amazonaws.com/123456789012/a-name-of-20-letters-a-stream-name-of-30-letters-00.fifo"
      arn = "arn:aws:sqs:ap-southeast-1:123456789012:a-name-of-20-letters-a-stream-name-of-30-letters-00.fifo"
    }
  }
}

variables {
  name           = "a-name-of-20-letters"
  streams        = { for number in range(20) : format("a-stream-name-of-30-letters-%02d", number) => { source_url = "https://api.example.org/posts" } }
  database_role  = "a_role_of_63_letters___________________________________________"
  package_key    = "packages/posts-pipeline_1.0.0_amd64.deb"
  package_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
}

run "twenty_streams" {
  # <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
  assert {
    condition     = alltrue([for policy in aws_iam_role_policy.host : length(policy.policy) < 10240])
    error_message = "IAM takes what a role may do: ${join(" and ", [for policy in aws_iam_role_policy.host : length(policy.policy)])} of 10,240 characters."
  }
}
