# Two hosts, one for the importers of all streams and one for the transformers. Neither keeps anything that is not in S3 or in
# Postgres, so a host is never changed: another package is another host. Streams come and go without that: see environment.tf.

# Canonical says which image is the newest. 24.04 LTS is maintained until 2029. Its successor, 26.04 LTS, wants 1.5 GB of memory,
# more than a t3.micro has, and nobody has tried this on it; ami_id takes it.
data "aws_ssm_parameter" "ubuntu" {
  count = var.ami_id == null ? 1 : 0

  name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
}

locals {
  ami_id = var.ami_id == null ? nonsensitive(data.aws_ssm_parameter.ubuntu[0].value) : var.ami_id

  security_groups = {
    importer    = aws_security_group.importer.id
    transformer = aws_security_group.transformer.id
  }
}

resource "aws_instance" "host" {
  for_each = local.security_groups

  ami                         = local.ami_id
  instance_type               = var.instance_type
  subnet_id                   = aws_subnet.public.id
  associate_public_ip_address = true
  vpc_security_group_ids      = [each.value]
  iam_instance_profile        = aws_iam_instance_profile.host[each.key].name

  user_data = templatefile("${path.module}/user-data.sh.tftpl", {
    daemon               = each.key
    streams              = file("${path.module}/streams.py")
    database_authorities = local.database_authorities
    region               = var.region
    bucket               = aws_s3_bucket.archive.bucket
    package_key          = var.package_key
    package_sha256       = var.package_sha256
  })
  user_data_replace_on_change = true

  # Nothing but the host itself gets its role's keys: tokens, and one hop.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # Each importer spools one answer, all its pages together, of at most 1 GiB by default.
  root_block_device {
    volume_size = 8
    volume_type = "gp3"
    encrypted   = true
  }

  tags = { Name = "${var.name}-${each.key}" }

  lifecycle {
    # A newer image is for the next host, not a reason for one.
    ignore_changes = [ami]
  }

  # The first thing that a host does is to use its role and the internet.
  depends_on = [aws_iam_role_policy.host, aws_route.internet, aws_vpc_security_group_egress_rule.out]
}
