# What AWS would answer, where the configuration or the provider looks at the form of it.

mock_data "aws_availability_zones" {
  defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
}

mock_data "aws_ssm_parameter" {
  defaults = { value = "ami-0123456789abcdef0" }
}

mock_data "aws_caller_identity" {
  defaults = { account_id = "123456789012" }
}

mock_resource "aws_s3_bucket" {
  defaults = {
    id     = "posts-pipeline-20250101"
    bucket = "posts-pipeline-20250101"
    arn    = "arn:aws:s3:::posts-pipeline-20250101"
  }
}

mock_resource "aws_sqs_queue" {
  defaults = {
    id  = "https://sqs.eu-central-1.amazonaws.com/123456789012/posts-pipeline-posts.fifo"
    url = "https://sqs.eu-central-1.amazonaws.com/123456789012/posts-pipeline-posts.fifo"
    arn = "arn:aws:sqs:eu-central-1:123456789012:posts-pipeline-posts.fifo"
  }
}

mock_resource "aws_sns_topic" {
  defaults = { arn = "arn:aws:sns:eu-central-1:123456789012:posts-pipeline-alarms" }
}

mock_resource "aws_db_instance" {
  defaults = {
    endpoint           = "posts-pipeline.abc.eu-central-1.rds.amazonaws.com:5432"
    resource_id        = "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds-abc" }]
  }
}
